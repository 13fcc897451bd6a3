# Production: three zones, and what is kept is locked against deletion.

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
    tier   = "Standard"
    system = { vm_size = "Standard_D2s_v5", min = 3, max = 6 }
    work   = { vm_size = "Standard_D4s_v5", min = 3, max = 12 }
  }
  registry_sku = "Premium"
  blob         = { replication = "ZRS", deleted_days = 30 }
  lock         = true
  logs         = { days = 90, daily_gb = -1 }
}
