# Staging: the shape of production at the smallest size. Nothing is locked: it can be
# taken down and made again.

provider "azurerm" {
  storage_use_azuread = true
  resource_providers_to_register = [
    "Microsoft.AlertsManagement", "Microsoft.Cdn", "Microsoft.Compute", "Microsoft.ContainerRegistry", "Microsoft.ContainerService",
    "Microsoft.DocumentDB", "microsoft.insights", "Microsoft.ManagedIdentity", "Microsoft.Monitor", "Microsoft.Network",
    "Microsoft.OperationalInsights", "Microsoft.OperationsManagement", "Microsoft.Storage",
  ]
  features {
    storage {
      data_plane_available = false # the account has no address outside the network
    }
  }
}

module "site" {
  source = "../modules/site"

  name                  = var.name
  location              = var.location
  tags                  = var.tags
  api_server_ranges     = var.api_server_ranges
  admins                = var.admins
  deployers             = var.deployers
  cosmos                = var.cosmos
  host_name             = var.host_name
  publish               = var.publish
  private_link          = var.private_link
  private_link_location = var.private_link_location
  origin_host_name      = var.origin_host_name
  waf                   = var.waf
  alert_emails          = var.alert_emails

  cluster = {
    tier   = "Free"
    system = { vm_size = "Standard_D2s_v5", min = 1, max = 3 }
    work   = { vm_size = "Standard_D2s_v5", min = 2, max = 4 }
  }
  registry_sku = "Standard"
  blob         = { replication = "LRS", deleted_days = 7 }
  lock         = false
  logs         = { days = 30, daily_gb = 1 }
}
