output "log_workspace_id" {
  description = "Resource id of the Log Analytics workspace."
  value       = azurerm_log_analytics_workspace.this.id
}

output "query_endpoint" {
  description = "Where Grafana and others ask for metrics."
  value       = azurerm_monitor_workspace.this.query_endpoint
}

output "traces_connection_string" {
  description = "Connection string of Application Insights, for the exporter of an OpenTelemetry collector."
  value       = azurerm_application_insights.this.connection_string
  sensitive   = true
}
