output "helm_values" {
  description = "Values of the chart, in YAML."
  value       = module.site.helm_values
}

output "require_header" {
  description = "Content of the Secret athensctl-front-door, key header."
  value       = module.site.require_header
}

output "url" {
  description = "What goes into GOPROXY."
  value       = module.site.url
}

output "dns_records" {
  description = "Records to make where host_name's zone is."
  value       = module.site.dns_records
}

output "registry" {
  description = "Host of the registry."
  value       = module.site.registry
}

output "cluster" {
  description = "The cluster, its resource groups, and the private link service in the second."
  value       = module.site.cluster
}

output "query_endpoint" {
  description = "Where Grafana and others ask for metrics."
  value       = module.site.query_endpoint
}

output "traces_connection_string" {
  description = "Connection string of Application Insights."
  value       = module.site.traces_connection_string
  sensitive   = true
}
