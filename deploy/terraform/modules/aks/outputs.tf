output "id" {
  description = "Resource id of the cluster."
  value       = azurerm_kubernetes_cluster.this.id
}

output "name" {
  description = "Name of the cluster."
  value       = azurerm_kubernetes_cluster.this.name
}

output "issuer" {
  description = "Issuer of the service accounts' tokens."
  value       = azurerm_kubernetes_cluster.this.oidc_issuer_url
}

output "node_resource_group" {
  description = "Resource group in which the cluster makes what it needs: nodes, load balancers, private link services."
  value = {
    id   = azurerm_kubernetes_cluster.this.node_resource_group_id
    name = azurerm_kubernetes_cluster.this.node_resource_group
  }
}

output "registry" {
  description = "Host of the registry."
  value       = azurerm_container_registry.this.login_server
}
