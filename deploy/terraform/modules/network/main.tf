# A virtual network with three subnets: the nodes, the entrance (the internal load
# balancer and the private link service through which Front Door comes), and the private
# endpoints of Cosmos DB and Blob Storage, with the DNS zones that lead to them.

locals {
  entrance = cidrsubnet(var.address_space, 8, 16)

  # Zones have fixed names: the services' own names are aliases into them.
  # https://learn.microsoft.com/azure/private-link/private-endpoint-dns
  zones = {
    cosmos = "privatelink.documents.azure.com"
    blob   = "privatelink.blob.core.windows.net"
  }
}

resource "azurerm_virtual_network" "this" {
  name                = var.name
  resource_group_name = var.resource_group_name
  location            = var.location
  address_space       = [var.address_space]
  tags                = var.tags
}

# Pods have addresses of their own (Azure CNI overlay): 4,091 nodes fit.
resource "azurerm_subnet" "nodes" {
  name                            = "nodes"
  resource_group_name             = var.resource_group_name
  virtual_network_name            = azurerm_virtual_network.this.name
  address_prefixes                = [cidrsubnet(var.address_space, 4, 0)]
  default_outbound_access_enabled = false
}

resource "azurerm_subnet" "entrance" {
  name                            = "entrance"
  resource_group_name             = var.resource_group_name
  virtual_network_name            = azurerm_virtual_network.this.name
  address_prefixes                = [local.entrance]
  default_outbound_access_enabled = false
  # A private link service can't be made where they are on.
  private_link_service_network_policies_enabled = false
}

resource "azurerm_subnet" "endpoints" {
  name                            = "endpoints"
  resource_group_name             = var.resource_group_name
  virtual_network_name            = azurerm_virtual_network.this.name
  address_prefixes                = [cidrsubnet(var.address_space, 8, 17)]
  default_outbound_access_enabled = false
}

resource "azurerm_private_dns_zone" "this" {
  for_each            = local.zones
  name                = each.value
  resource_group_name = var.resource_group_name
  tags                = var.tags
}

resource "azurerm_private_dns_zone_virtual_network_link" "this" {
  for_each            = local.zones
  name                = var.name
  private_dns_zone_id = azurerm_private_dns_zone.this[each.key].id
  virtual_network_id  = azurerm_virtual_network.this.id
  tags                = var.tags
}
