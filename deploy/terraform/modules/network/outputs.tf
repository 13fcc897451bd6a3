output "nodes_subnet_id" {
  description = "Subnet of the nodes."
  value       = azurerm_subnet.nodes.id
}

output "entrance_subnet" {
  description = "Subnet of the internal load balancer and the private link service, and the load balancer's address in it."
  value = {
    id      = azurerm_subnet.entrance.id
    name    = azurerm_subnet.entrance.name
    address = cidrhost(local.entrance, 100) # Azure gives addresses from the bottom
  }
}

output "endpoints_subnet_id" {
  description = "Subnet of the private endpoints."
  value       = azurerm_subnet.endpoints.id
}

output "zone_ids" {
  description = "Private DNS zones: cosmos, blob."
  # A zone of no use to the network is of none to an endpoint: wait for the link.
  value = { for k, link in azurerm_private_dns_zone_virtual_network_link.this : k => link.private_dns_zone_id }
}
