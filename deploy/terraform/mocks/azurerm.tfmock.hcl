# What Azure would say of resources it has made, for terraform test: ids that the provider
# takes where others refer to them.

mock_resource "azurerm_virtual_network" {
  defaults = { id = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/Microsoft.Network/virtualNetworks/site" }
}

mock_resource "azurerm_subnet" {
  defaults = { id = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/Microsoft.Network/virtualNetworks/site/subnets/some" }
}

mock_resource "azurerm_private_dns_zone" {
  defaults = { id = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/Microsoft.Network/privateDnsZones/privatelink.example.com" }
}

mock_resource "azurerm_user_assigned_identity" {
  defaults = {
    id           = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/Microsoft.ManagedIdentity/userAssignedIdentities/some"
    principal_id = "00000000-0000-0000-0000-000000000010"
    client_id    = "00000000-0000-0000-0000-000000000011"
    tenant_id    = "00000000-0000-0000-0000-00000000000e"
  }
}

mock_resource "azurerm_kubernetes_cluster" {
  defaults = {
    id                     = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/Microsoft.ContainerService/managedClusters/site"
    node_resource_group_id = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site-nodes"
    oidc_issuer_url        = "https://westeurope.oic.prod-aks.azure.com/tenant/cluster/"
  }
}

mock_resource "azurerm_container_registry" {
  defaults = {
    id           = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/Microsoft.ContainerRegistry/registries/site"
    login_server = "site.azurecr.io"
  }
}

mock_resource "azurerm_cosmosdb_account" {
  defaults = {
    id       = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/Microsoft.DocumentDB/databaseAccounts/site"
    endpoint = "https://site.documents.azure.com:443/"
  }
}

mock_resource "azurerm_storage_account" {
  defaults = {
    id                    = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/Microsoft.Storage/storageAccounts/site"
    primary_blob_endpoint = "https://site.blob.core.windows.net/"
  }
}

mock_resource "azurerm_storage_container" {
  defaults = { id = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/Microsoft.Storage/storageAccounts/site/blobServices/default/containers/modules" }
}

mock_resource "azurerm_cdn_frontdoor_profile" {
  defaults = {
    id            = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/Microsoft.Cdn/profiles/site"
    resource_guid = "00000000-0000-0000-0000-0000000000fd"
  }
}

mock_resource "azurerm_cdn_frontdoor_endpoint" {
  defaults = {
    id        = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/Microsoft.Cdn/profiles/site/afdEndpoints/site"
    host_name = "site-abc.z01.azurefd.net"
  }
}

mock_resource "azurerm_cdn_frontdoor_origin_group" {
  defaults = { id = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/Microsoft.Cdn/profiles/site/originGroups/proxy" }
}

mock_resource "azurerm_cdn_frontdoor_origin" {
  defaults = { id = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/Microsoft.Cdn/profiles/site/originGroups/proxy/origins/proxy" }
}

mock_resource "azurerm_cdn_frontdoor_route" {
  defaults = { id = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/Microsoft.Cdn/profiles/site/afdEndpoints/site/routes/some" }
}

mock_resource "azurerm_cdn_frontdoor_custom_domain" {
  defaults = {
    id               = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/Microsoft.Cdn/profiles/site/customDomains/goproxy"
    validation_token = "token"
  }
}

mock_resource "azurerm_cdn_frontdoor_firewall_policy" {
  defaults = { id = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/Microsoft.Network/frontDoorWebApplicationFirewallPolicies/site" }
}

mock_resource "azurerm_log_analytics_workspace" {
  defaults = { id = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/Microsoft.OperationalInsights/workspaces/site" }
}

mock_resource "azurerm_monitor_workspace" {
  defaults = { id = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/Microsoft.Monitor/accounts/site" }
}

mock_resource "azurerm_monitor_data_collection_endpoint" {
  defaults = { id = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/Microsoft.Insights/dataCollectionEndpoints/site" }
}

mock_resource "azurerm_monitor_data_collection_rule" {
  defaults = { id = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/Microsoft.Insights/dataCollectionRules/some" }
}

mock_resource "azurerm_monitor_action_group" {
  defaults = { id = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/Microsoft.Insights/actionGroups/site" }
}
