mock_provider "azurerm" {
  source = "../../mocks"
}

variables {
  name                = "site"
  resource_group_name = "site"
  tags                = {}
  host_name           = "goproxy.example.com"
  publish             = true
  waf                 = {}
  origin = {
    host = "10.40.16.100"
    private_link = {
      id       = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site-nodes/providers/Microsoft.Network/privateLinkServices/athensctl"
      location = "westeurope"
    }
  }
}

run "private_link" {
  assert {
    condition     = azurerm_cdn_frontdoor_profile.this.sku_name == "Premium_AzureFrontDoor" && azurerm_cdn_frontdoor_firewall_policy.this.sku_name == "Premium_AzureFrontDoor"
    error_message = "Private link needs a Premium profile."
  }
  assert {
    condition     = azurerm_cdn_frontdoor_origin.this[0].private_link[0].private_link_target_id == var.origin.private_link.id && azurerm_cdn_frontdoor_origin.this[0].host_name == "10.40.16.100"
    error_message = "The origin is not the private link service."
  }
  # The headers table of the design: what athensctl says is honoured (a route with a cache
  # and no rule set), and what it never lets a cache keep is not looked up.
  assert {
    condition     = length(azurerm_cdn_frontdoor_route.this["modules"].cache) == 1 && azurerm_cdn_frontdoor_route.this["modules"].patterns_to_match == tolist(["/*"]) && azurerm_cdn_frontdoor_route.this["modules"].cdn_frontdoor_rule_set_ids == null
    error_message = "Modules are not cached as the origin says."
  }
  assert {
    condition     = azurerm_cdn_frontdoor_route.this["modules"].cache[0].query_string_caching_behavior == "IgnoreQueryString" && azurerm_cdn_frontdoor_route.this["modules"].cache[0].compression_enabled == false
    error_message = "A query string makes a second copy in the cache, or zips are compressed again."
  }
  assert {
    condition     = length(azurerm_cdn_frontdoor_route.this["uncached"].cache) == 0
    error_message = "The route of what is not cached has a cache."
  }
  assert {
    condition     = length(setsubtract(["/index", "/catalog", "/healthz", "/readyz", "/version", "/metrics", "/webhook", "/internal/*"], azurerm_cdn_frontdoor_route.this["uncached"].patterns_to_match)) == 0
    error_message = "Something is cached that must not be."
  }
  assert {
    condition     = alltrue([for r in azurerm_cdn_frontdoor_route.this : r.https_redirect_enabled && !r.link_to_default_domain && length(r.cdn_frontdoor_custom_domain_ids) == 1])
    error_message = "A route answers over http, or under another name too."
  }
  assert {
    condition     = azurerm_cdn_frontdoor_custom_domain.this[0].tls[0].minimum_version == "TLS12" && azurerm_cdn_frontdoor_custom_domain.this[0].tls[0].cipher_suite[0].type == "TLS12_2023"
    error_message = "TLS older than 1.2, or old ciphers."
  }
  assert {
    condition     = azurerm_cdn_frontdoor_origin_group.this.health_probe[0].path == "/readyz" && azurerm_cdn_frontdoor_origin_group.this.health_probe[0].protocol == "Http"
    error_message = "The health probe asks something else."
  }
  assert {
    condition     = azurerm_cdn_frontdoor_profile.this.response_timeout_seconds > 50
    error_message = "Front Door gives up before fetch-timeout (50 s) is over."
  }
  assert {
    condition     = output.require_header == "X-Azure-FDID=00000000-0000-0000-0000-0000000000fd"
    error_message = "The origin would not be locked to this profile."
  }
  assert {
    condition     = output.url == "https://goproxy.example.com" && output.dns_records["_dnsauth.goproxy.example.com"] == { type = "TXT", value = "token" } && output.dns_records["goproxy.example.com"] == { type = "CNAME", value = "site-abc.z01.azurefd.net" }
    error_message = "The records to make are others."
  }
}

run "firewall" {
  assert {
    condition     = azurerm_cdn_frontdoor_firewall_policy.this.mode == "Prevention" && azurerm_cdn_frontdoor_firewall_policy.this.enabled
    error_message = "The firewall only watches."
  }
  assert {
    condition = alltrue([
      for rule in azurerm_cdn_frontdoor_firewall_policy.this.custom_rule : rule.match_condition[0].match_values == tolist(["GET", "HEAD"]) && rule.match_condition[0].negation_condition && rule.action == "Block"
      if rule.name == "methods"
    ]) && contains(azurerm_cdn_frontdoor_firewall_policy.this.custom_rule[*].name, "methods")
    error_message = "Others than readers pass."
  }
  # What the rule about paths blocks, and what it lets through.
  assert {
    condition = alltrue([for rule in azurerm_cdn_frontdoor_firewall_policy.this.custom_rule :
      alltrue([for uri in ["/metrics", "/metrics?x=1", "https://goproxy.example.com:443/metrics", "/internal/known"] : length(regexall(rule.match_condition[0].match_values[0], uri)) > 0])
      && alltrue([for uri in ["/github.com/prometheus/client_golang/metrics/@v/list", "/example.com/internal/@latest", "/metricsd.example.com/@v/list", "https://goproxy.example.com/a.com/metrics/@v/list"] : length(regexall(rule.match_condition[0].match_values[0], uri)) == 0])
    if rule.name == "inside"]) && contains(azurerm_cdn_frontdoor_firewall_policy.this.custom_rule[*].name, "inside")
    error_message = "The rule about what is for inside blocks modules, or lets metrics out."
  }
  assert {
    condition     = [for rule in azurerm_cdn_frontdoor_firewall_policy.this.custom_rule : rule.rate_limit_threshold if rule.type == "RateLimitRule"] == [6000]
    error_message = "There is no rate limit."
  }
  assert {
    condition     = azurerm_cdn_frontdoor_firewall_policy.this.managed_rule[0].action == "Log" && azurerm_cdn_frontdoor_firewall_policy.this.managed_rule[0].override[0].rule[0].enabled == false
    error_message = "Microsoft's rules block, or take modules named .git for an attack."
  }
  assert {
    condition     = length(azurerm_cdn_frontdoor_security_policy.this.security_policies[0].firewall[0].association[0].domain) == 2
    error_message = "A name of the proxy has no firewall."
  }
}

run "webhook" {
  variables {
    waf = { webhook = true, rate_limit = 0, managed_rules = "Block" }
  }
  assert {
    condition     = azurerm_cdn_frontdoor_firewall_policy.this.custom_rule[*].name == tolist(["methods", "webhook", "inside"])
    error_message = "Other rules than those asked for."
  }
  assert {
    condition = alltrue([for rule in azurerm_cdn_frontdoor_firewall_policy.this.custom_rule :
      rule.match_condition[0].match_values == tolist(["POST"]) && rule.match_condition[1].negation_condition && length(regexall(rule.match_condition[1].match_values[0], "/webhook")) == 1 && length(regexall(rule.match_condition[1].match_values[0], "/webhook.example.com/@v/v1.0.0.save")) == 0
    if rule.name == "webhook"])
    error_message = "POST passes elsewhere than at /webhook."
  }
}

run "over_the_internet" {
  variables {
    host_name = null
    origin    = { host = "origin.example.com" }
  }
  assert {
    condition     = azurerm_cdn_frontdoor_profile.this.sku_name == "Standard_AzureFrontDoor" && length(azurerm_cdn_frontdoor_firewall_policy.this.managed_rule) == 0
    error_message = "Without private link a Standard profile is enough, which has no managed rules."
  }
  assert {
    condition     = alltrue([for r in azurerm_cdn_frontdoor_route.this : r.forwarding_protocol == "HttpsOnly" && r.link_to_default_domain]) && azurerm_cdn_frontdoor_origin.this[0].certificate_name_check_enabled && azurerm_cdn_frontdoor_origin.this[0].origin_host_header == "origin.example.com"
    error_message = "Requests cross the internet without TLS, or the origin's certificate is not checked."
  }
  assert {
    condition     = azurerm_cdn_frontdoor_origin_group.this.health_probe[0].protocol == "Https"
    error_message = "The health probe crosses the internet without TLS."
  }
  assert {
    condition     = output.url == "https://site-abc.z01.azurefd.net" && output.dns_records == {}
    error_message = "There is a name that was not asked for."
  }
}

run "not_yet" {
  variables {
    publish = false
  }
  assert {
    condition     = length(azurerm_cdn_frontdoor_origin.this) == 0 && length(azurerm_cdn_frontdoor_route.this) == 0 && length(azurerm_cdn_frontdoor_custom_domain_association.this) == 0
    error_message = "Front Door is told of an origin that is not there yet."
  }
}

run "plain_http_over_the_internet" {
  command         = plan
  expect_failures = [var.origin]
  variables {
    origin = { host = "198.51.100.7" }
  }
}
