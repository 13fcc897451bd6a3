# One site: everything that athensctl needs in Azure, from these modules. staging and
# production are two of them, of different sizes.

locals {
  tags  = merge({ site = var.name, managed-by = "terraform" }, var.tags)
  plain = replace(var.name, "-", "") # for names that take no hyphens

  # The chart's names are fixed with fullnameOverride, since Azure has to know the storage
  # role's service account.
  release      = "athensctl"
  private_link = local.release # name of the private link service that the cluster makes
}

resource "azurerm_resource_group" "this" {
  name     = var.name
  location = var.location
  tags     = local.tags
}

module "network" {
  source              = "../network"
  name                = var.name
  resource_group_name = azurerm_resource_group.this.name
  location            = azurerm_resource_group.this.location
  address_space       = var.address_space
  tags                = local.tags
}

module "aks" {
  source              = "../aks"
  name                = var.name
  resource_group_name = azurerm_resource_group.this.name
  location            = azurerm_resource_group.this.location
  tags                = local.tags
  nodes_subnet_id     = module.network.nodes_subnet_id
  entrance_subnet_id  = module.network.entrance_subnet.id
  zones               = var.zones
  cluster             = var.cluster
  api_server_ranges   = var.api_server_ranges
  admins              = var.admins
  deployers           = var.deployers
  namespace           = var.namespace
  registry            = { name = local.plain, sku = var.registry_sku }
  log_workspace_id    = module.monitor.log_workspace_id
}

module "data" {
  source              = "../data"
  name                = var.name
  resource_group_name = azurerm_resource_group.this.name
  location            = azurerm_resource_group.this.location
  tags                = local.tags
  cosmos              = var.cosmos
  blob                = merge(var.blob, { name = local.plain })
  endpoints_subnet_id = module.network.endpoints_subnet_id
  zone_ids            = module.network.zone_ids
  service_account     = { issuer = module.aks.issuer, namespace = var.namespace, name = "${local.release}-storage" }
  lock                = var.lock
}

module "frontdoor" {
  source              = "../frontdoor"
  name                = var.name
  resource_group_name = azurerm_resource_group.this.name
  tags                = local.tags
  host_name           = var.host_name
  publish             = var.publish
  waf                 = var.waf
  origin = {
    host = var.private_link ? module.network.entrance_subnet.address : var.origin_host_name
    private_link = var.private_link ? {
      id       = "${module.aks.node_resource_group.id}/providers/Microsoft.Network/privateLinkServices/${local.private_link}"
      location = coalesce(var.private_link_location, var.location)
    } : null
  }
}

module "monitor" {
  source               = "../monitor"
  name                 = var.name
  resource_group_name  = azurerm_resource_group.this.name
  location             = azurerm_resource_group.this.location
  tags                 = local.tags
  logs                 = var.logs
  alert_emails         = var.alert_emails
  namespace            = var.namespace
  cluster              = { id = module.aks.id, name = module.aks.name }
  cosmos_account_id    = module.data.cosmos_account_id
  frontdoor_profile_id = module.frontdoor.id
}
