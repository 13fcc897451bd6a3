# Azure Monitor: metrics in a managed Prometheus with the chart's alerts, logs in Log
# Analytics, traces in Application Insights.

locals {
  # The chart's alerts, whose one source is the chart: its file is a template of helm with
  # two names in it. TestAlerts holds the result against what helm makes of it.
  source  = file("${path.module}/../../../../charts/athensctl/files/rules.yaml")
  runbook = regex("\\$runbook := \"([^\"]+)\"", local.source)[0]
  text    = join("\n", [for line in split("\n", local.source) : line if !startswith(line, "{{-")])
  alerts = yamldecode(replace(replace(local.text,
    "/\\{ \\{\\{- \\$ns \\}\\}/", "{namespace=\"${var.namespace}\""),
  "{{ $runbook }}", local.runbook))
}

resource "azurerm_log_analytics_workspace" "this" {
  name                = var.name
  resource_group_name = var.resource_group_name
  location            = var.location
  sku                 = "PerGB2018"
  retention_in_days   = var.logs.days
  daily_quota_gb      = var.logs.daily_gb
  tags                = var.tags
}

# Traces come here from an OpenTelemetry collector (docs/aks.md).
resource "azurerm_application_insights" "this" {
  name                = var.name
  resource_group_name = var.resource_group_name
  location            = var.location
  application_type    = "other"
  workspace_id        = azurerm_log_analytics_workspace.this.id
  retention_in_days   = 30
  tags                = var.tags
}

resource "azurerm_monitor_workspace" "this" {
  name                = var.name
  resource_group_name = var.resource_group_name
  location            = var.location
  tags                = var.tags
}

resource "azurerm_monitor_data_collection_endpoint" "this" {
  name                = var.name
  resource_group_name = var.resource_group_name
  location            = var.location
  kind                = "Linux"
  tags                = var.tags
}

resource "azurerm_monitor_data_collection_rule" "metrics" {
  name                        = "${var.name}-metrics"
  resource_group_name         = var.resource_group_name
  location                    = var.location
  kind                        = "Linux"
  data_collection_endpoint_id = azurerm_monitor_data_collection_endpoint.this.id
  tags                        = var.tags

  data_sources {
    prometheus_forwarder {
      name    = "prometheus"
      streams = ["Microsoft-PrometheusMetrics"]
    }
  }
  destinations {
    monitor_account {
      name               = "workspace"
      monitor_account_id = azurerm_monitor_workspace.this.id
    }
  }
  data_flow {
    streams      = ["Microsoft-PrometheusMetrics"]
    destinations = ["workspace"]
  }
}

# Logs of containers and events of the cluster; what Container Insights measures besides
# is in Prometheus already.
resource "azurerm_monitor_data_collection_rule" "logs" {
  name                = "${var.name}-logs"
  resource_group_name = var.resource_group_name
  location            = var.location
  kind                = "Linux"
  tags                = var.tags

  data_sources {
    extension {
      name           = "containers"
      extension_name = "ContainerInsights"
      streams        = ["Microsoft-ContainerLogV2", "Microsoft-KubeEvents"]
      extension_json = jsonencode({
        dataCollectionSettings = {
          interval               = "1m"
          namespaceFilteringMode = "Off"
          enableContainerLogV2   = true
        }
      })
    }
  }
  destinations {
    log_analytics {
      name                  = "workspace"
      workspace_resource_id = azurerm_log_analytics_workspace.this.id
    }
  }
  data_flow {
    streams      = ["Microsoft-ContainerLogV2", "Microsoft-KubeEvents"]
    destinations = ["workspace"]
  }
}

resource "azurerm_monitor_data_collection_rule_association" "this" {
  for_each = {
    metrics                    = azurerm_monitor_data_collection_rule.metrics.id
    ContainerInsightsExtension = azurerm_monitor_data_collection_rule.logs.id # the name that the agent looks for
  }
  name                    = each.key
  target_resource_id      = var.cluster.id
  data_collection_rule_id = each.value
}

resource "azurerm_monitor_diagnostic_setting" "this" {
  for_each = {
    # Not FrontDoorAccessLog: an entry for each request of the public costs more than it
    # tells beside the metrics. Add it while you look for something.
    frontdoor = { id = var.frontdoor_profile_id, logs = ["FrontDoorWebApplicationFirewallLog", "FrontDoorHealthProbeLog"] }
    cluster   = { id = var.cluster.id, logs = ["kube-audit-admin", "guard"] }
    cosmos    = { id = var.cosmos_account_id, logs = ["ControlPlaneRequests"] }
  }
  name                           = "logs"
  target_resource_id             = each.value.id
  log_analytics_workspace_id     = azurerm_log_analytics_workspace.this.id
  log_analytics_destination_type = each.key == "frontdoor" ? null : "Dedicated"

  dynamic "enabled_log" {
    for_each = each.value.logs
    content {
      category = enabled_log.value
    }
  }
}

resource "azurerm_monitor_action_group" "this" {
  count               = length(var.alert_emails) > 0 ? 1 : 0
  name                = var.name
  resource_group_name = var.resource_group_name
  short_name          = "athensctl"
  tags                = var.tags

  dynamic "email_receiver" {
    for_each = var.alert_emails
    content {
      name                    = email_receiver.key
      email_address           = email_receiver.value
      use_common_alert_schema = true
    }
  }
}

resource "azurerm_monitor_alert_prometheus_rule_group" "this" {
  name                = var.name
  resource_group_name = var.resource_group_name
  location            = var.location
  scopes              = [azurerm_monitor_workspace.this.id]
  cluster_name        = var.cluster.name
  rule_group_enabled  = true
  interval            = "PT1M"
  tags                = var.tags

  dynamic "rule" {
    for_each = local.alerts
    content {
      alert       = rule.value.alert
      expression  = rule.value.expr
      for         = "PT${upper(try(rule.value["for"], "0m"))}"
      severity    = rule.value.labels.severity == "critical" ? 1 : 2
      labels      = rule.value.labels
      annotations = rule.value.annotations
      enabled     = true

      dynamic "action" {
        for_each = azurerm_monitor_action_group.this
        content {
          action_group_id = action.value.id
        }
      }
      alert_resolution {
        auto_resolved   = true
        time_to_resolve = "PT10M"
      }
    }
  }
}
