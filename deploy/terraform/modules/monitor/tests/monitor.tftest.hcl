mock_provider "azurerm" {
  source = "../../mocks"
}

variables {
  name                 = "site"
  resource_group_name  = "site"
  location             = "westeurope"
  tags                 = {}
  logs                 = { days = 30, daily_gb = 1 }
  alert_emails         = { operators = "operators@example.com" }
  namespace            = "athensctl"
  cluster              = { id = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/Microsoft.ContainerService/managedClusters/site", name = "site" }
  cosmos_account_id    = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/Microsoft.DocumentDB/databaseAccounts/site"
  frontdoor_profile_id = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/Microsoft.Cdn/profiles/site"
}

run "monitor" {
  assert {
    condition     = azurerm_monitor_data_collection_rule.metrics.data_flow[0].streams == tolist(["Microsoft-PrometheusMetrics"]) && azurerm_monitor_data_collection_rule.metrics.destinations[0].monitor_account[0].monitor_account_id == azurerm_monitor_workspace.this.id
    error_message = "Metrics do not go to the managed Prometheus."
  }
  assert {
    condition     = keys(azurerm_monitor_data_collection_rule_association.this) == ["ContainerInsightsExtension", "metrics"] && alltrue([for a in azurerm_monitor_data_collection_rule_association.this : a.target_resource_id == var.cluster.id])
    error_message = "The cluster's metrics or logs are not collected."
  }
  assert {
    condition     = azurerm_application_insights.this.workspace_id == azurerm_log_analytics_workspace.this.id && azurerm_log_analytics_workspace.this.daily_quota_gb == 1
    error_message = "Traces are not in the workspace, or it has no bound."
  }
  assert {
    condition     = alltrue([for r in azurerm_monitor_alert_prometheus_rule_group.this.rule : length(r.action) == 1 && r.annotations.runbook_url != "" && !strcontains(r.expression, "{{") && strcontains(r.expression, "namespace=\"athensctl\"")])
    error_message = "An alert writes to nobody, has no runbook, or an expression that was not filled in."
  }
  assert {
    condition     = length(azurerm_monitor_alert_prometheus_rule_group.this.rule) >= 7
    error_message = "Alerts of the chart are missing."
  }
}

run "nobody_to_write_to" {
  variables {
    alert_emails = {}
  }
  assert {
    condition     = length(azurerm_monitor_action_group.this) == 0 && alltrue([for r in azurerm_monitor_alert_prometheus_rule_group.this.rule : length(r.action) == 0])
    error_message = "There is somebody to write to."
  }
}
