# The public entrance: TLS, the cache, and a firewall, in front of one origin that takes
# requests from this profile only.

locals {
  private = var.origin.private_link != null
  sku     = local.private ? "Premium_AzureFrontDoor" : "Standard_AzureFrontDoor"

  # What athensctl never lets a cache keep, so that nothing is looked up for it. All else
  # has the Cache-Control of the design's table, which Front Door honours as it is.
  uncached = ["/index", "/catalog", "/healthz", "/readyz", "/version", "/metrics", "/robots.txt", "/webhook", "/internal/*"]
}

resource "azurerm_cdn_frontdoor_profile" "this" {
  name                = var.name
  resource_group_name = var.resource_group_name
  sku_name            = local.sku
  # athensctl answers within fetch-timeout (50 s), or says that it can't.
  response_timeout_seconds = 60
  tags                     = var.tags
}

resource "azurerm_cdn_frontdoor_endpoint" "this" {
  name                     = var.name
  cdn_frontdoor_profile_id = azurerm_cdn_frontdoor_profile.this.id
  tags                     = var.tags
}

resource "azurerm_cdn_frontdoor_custom_domain" "this" {
  count                    = var.host_name == null ? 0 : 1
  name                     = replace(var.host_name, ".", "-")
  cdn_frontdoor_profile_id = azurerm_cdn_frontdoor_profile.this.id
  host_name                = var.host_name

  tls {
    certificate_type = "ManagedCertificate"
    minimum_version  = "TLS12"
    cipher_suite {
      type = "TLS12_2023"
    }
  }
}

resource "azurerm_cdn_frontdoor_origin_group" "this" {
  name                     = "proxy"
  cdn_frontdoor_profile_id = azurerm_cdn_frontdoor_profile.this.id
  session_affinity_enabled = false

  # Each of Front Door's places asks. With one origin nothing depends on the answer but the
  # metric "origin health percentage".
  health_probe {
    protocol            = local.private ? "Http" : "Https"
    path                = "/readyz"
    request_type        = "HEAD"
    interval_in_seconds = 60
  }
  load_balancing {
    sample_size                 = 4
    successful_samples_required = 2
  }
}

resource "azurerm_cdn_frontdoor_origin" "this" {
  count                          = var.publish ? 1 : 0
  name                           = "proxy"
  cdn_frontdoor_origin_group_id  = azurerm_cdn_frontdoor_origin_group.this.id
  host_name                      = var.origin.host
  origin_host_header             = local.private ? null : var.origin.host
  certificate_name_check_enabled = true

  dynamic "private_link" {
    for_each = local.private ? [var.origin.private_link] : []
    content {
      request_message        = "Front Door ${var.name}"
      location               = private_link.value.location
      private_link_target_id = private_link.value.id
    }
  }
}

resource "azurerm_cdn_frontdoor_route" "this" {
  for_each = var.publish ? {
    modules  = ["/*"]
    uncached = local.uncached
  } : {}
  name                            = each.key
  cdn_frontdoor_endpoint_id       = azurerm_cdn_frontdoor_endpoint.this.id
  cdn_frontdoor_origin_group_id   = azurerm_cdn_frontdoor_origin_group.this.id
  cdn_frontdoor_origin_ids        = azurerm_cdn_frontdoor_origin.this[*].id
  cdn_frontdoor_custom_domain_ids = azurerm_cdn_frontdoor_custom_domain.this[*].id
  link_to_default_domain          = var.host_name == null
  patterns_to_match               = each.value
  supported_protocols             = ["Http", "Https"]
  https_redirect_enabled          = true
  forwarding_protocol             = local.private ? "HttpOnly" : "HttpsOnly"

  dynamic "cache" {
    for_each = each.key == "modules" ? ["honour the origin"] : []
    content {
      # No answer depends on a query string here: with one it is the same file.
      query_string_caching_behavior = "IgnoreQueryString"
      # Zips are compressed, and their length and ranges have to stay what they are.
      compression_enabled = false
    }
  }
}

resource "azurerm_cdn_frontdoor_custom_domain_association" "this" {
  count                          = var.publish && var.host_name != null ? 1 : 0
  cdn_frontdoor_custom_domain_id = azurerm_cdn_frontdoor_custom_domain.this[0].id
  cdn_frontdoor_route_ids        = [for route in azurerm_cdn_frontdoor_route.this : route.id]
}

resource "azurerm_cdn_frontdoor_firewall_policy" "this" {
  name                       = replace(var.name, "-", "")
  resource_group_name        = var.resource_group_name
  sku_name                   = local.sku
  enabled                    = true
  mode                       = "Prevention"
  request_body_check_enabled = true
  tags                       = var.tags

  # The protocol reads. A git host's webhook is the one that writes.
  custom_rule {
    name     = "methods"
    type     = "MatchRule"
    action   = "Block"
    priority = 10
    match_condition {
      match_variable     = "RequestMethod"
      operator           = "Equal"
      negation_condition = true
      match_values       = var.waf.webhook ? ["GET", "HEAD", "POST"] : ["GET", "HEAD"]
    }
  }
  dynamic "custom_rule" {
    for_each = var.waf.webhook ? ["POST"] : []
    content {
      name     = "webhook"
      type     = "MatchRule"
      action   = "Block"
      priority = 20
      match_condition {
        match_variable = "RequestMethod"
        operator       = "Equal"
        match_values   = [custom_rule.value]
      }
      match_condition {
        match_variable     = "RequestUri"
        operator           = "RegEx"
        negation_condition = true
        match_values       = ["^(https?://[^/]+)?/webhook([?]|$)"]
      }
    }
  }

  # For those inside the cluster. The rule holds whether the service gives it the path or
  # the whole URL.
  custom_rule {
    name     = "inside"
    type     = "MatchRule"
    action   = "Block"
    priority = 30
    match_condition {
      match_variable = "RequestUri"
      operator       = "RegEx"
      transforms     = ["UrlDecode", "Lowercase"]
      match_values   = ["^(https?://[^/]+)?/(metrics|internal)([/?]|$)"]
    }
  }

  dynamic "custom_rule" {
    for_each = var.waf.rate_limit == 0 ? [] : [var.waf.rate_limit]
    content {
      name                           = "rate"
      type                           = "RateLimitRule"
      action                         = "Block"
      priority                       = 100
      rate_limit_duration_in_minutes = 1
      rate_limit_threshold           = custom_rule.value
      match_condition {
        match_variable = "SocketAddr"
        operator       = "IPMatch"
        match_values   = ["0.0.0.0/0", "::/0"]
      }
    }
  }

  dynamic "managed_rule" {
    for_each = local.private ? [var.waf.managed_rules] : []
    content {
      type    = "Microsoft_DefaultRuleSet"
      version = "2.1"
      action  = managed_rule.value
      # Restricted files: ".git/" is in the path of every module whose name ends in .git.
      override {
        rule_group_name = "LFI"
        rule {
          rule_id = "930130"
          action  = "Log"
          enabled = false
        }
      }
    }
  }
}

resource "azurerm_cdn_frontdoor_security_policy" "this" {
  name                     = "firewall"
  cdn_frontdoor_profile_id = azurerm_cdn_frontdoor_profile.this.id

  security_policies {
    firewall {
      cdn_frontdoor_firewall_policy_id = azurerm_cdn_frontdoor_firewall_policy.this.id
      association {
        patterns_to_match = ["/*"]
        domain {
          cdn_frontdoor_domain_id = azurerm_cdn_frontdoor_endpoint.this.id
        }
        dynamic "domain" {
          for_each = azurerm_cdn_frontdoor_custom_domain.this
          content {
            cdn_frontdoor_domain_id = domain.value.id
          }
        }
      }
    }
  }
}
