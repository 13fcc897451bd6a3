# Where modules are kept: Cosmos DB for what is small, Blob Storage for zips, and the one
# identity that reaches them. Neither has keys, or an address on the internet.

locals {
  database = "athensctl"

  # The containers of storage/cosmos. The properties named are those that its queries
  # filter or order by; all others cost units with every write. TestContainers holds
  # this against what athensctl storage init makes.
  containers = {
    modules = ["pk", "key", "t", "complete"]
    ledger  = ["pk", "started", "due0", "due1"]
  }

  # Cosmos DB Built-in Data Contributor: items, queries, metadata; no databases or
  # containers. Its id is the same in every account.
  # https://learn.microsoft.com/azure/cosmos-db/nosql/reference-data-plane-security
  data_contributor = "00000000-0000-0000-0000-000000000002"
}

resource "azurerm_cosmosdb_account" "this" {
  name                = coalesce(var.cosmos.account_name, var.name)
  resource_group_name = var.resource_group_name
  location            = var.location
  offer_type          = "Standard"
  kind                = "GlobalDocumentDB"

  local_authentication_enabled       = false # no keys: identities alone
  access_key_metadata_writes_enabled = false
  public_network_access_enabled      = false
  minimal_tls_version                = "Tls12"
  multiple_write_locations_enabled   = false # conditional writes need one
  automatic_failover_enabled         = var.cosmos.second_region != null

  dynamic "capabilities" {
    for_each = var.cosmos.mode == "serverless" ? ["EnableServerless"] : []
    content {
      name = capabilities.value
    }
  }

  consistency_policy {
    consistency_level = var.cosmos.consistency
    # The least that Azure takes with two regions.
    max_interval_in_seconds = var.cosmos.consistency == "BoundedStaleness" ? 300 : null
    max_staleness_prefix    = var.cosmos.consistency == "BoundedStaleness" ? 100000 : null
  }

  geo_location {
    location          = var.location
    failover_priority = 0
    zone_redundant    = var.cosmos.zone_redundant
  }

  dynamic "geo_location" {
    for_each = var.cosmos.second_region == null ? [] : [var.cosmos.second_region]
    content {
      location          = geo_location.value
      failover_priority = 1
      zone_redundant    = var.cosmos.zone_redundant
    }
  }

  backup {
    type = "Continuous"
    tier = "Continuous${var.cosmos.backup_days}Days"
  }

  tags = var.tags
}

resource "azurerm_cosmosdb_sql_database" "this" {
  name                = local.database
  resource_group_name = var.resource_group_name
  account_name        = azurerm_cosmosdb_account.this.name

  dynamic "autoscale_settings" {
    for_each = var.cosmos.mode == "autoscale" ? [var.cosmos.max_throughput] : []
    content {
      max_throughput = autoscale_settings.value
    }
  }
}

resource "azurerm_cosmosdb_sql_container" "this" {
  for_each              = local.containers
  name                  = each.key
  resource_group_name   = var.resource_group_name
  account_name          = azurerm_cosmosdb_account.this.name
  database_name         = azurerm_cosmosdb_sql_database.this.name
  partition_key_paths   = ["/pk"]
  partition_key_version = 2
  default_ttl           = -1 # items that say so expire, and no others

  indexing_policy {
    indexing_mode = "consistent"
    excluded_path {
      path = "/*"
    }
    dynamic "included_path" {
      for_each = each.value
      content {
        path = "/${included_path.value}/?"
      }
    }
  }
}

resource "azurerm_storage_account" "this" {
  name                     = var.blob.name
  resource_group_name      = var.resource_group_name
  location                 = var.location
  account_kind             = "StorageV2"
  account_tier             = "Standard"
  account_replication_type = var.blob.replication
  access_tier              = "Hot"

  shared_access_key_enabled        = false
  local_user_enabled               = false
  public_network_access_enabled    = false
  allow_nested_items_to_be_public  = false
  cross_tenant_replication_enabled = false
  default_to_oauth_authentication  = true
  https_traffic_only_enabled       = true
  min_tls_version                  = "TLS1_2"

  # A blob is named after its content and written once, so versions would keep nothing but
  # what soft delete keeps: a blob that was deleted, or written over by mistake.
  blob_properties {
    delete_retention_policy {
      days = var.blob.deleted_days
    }
    container_delete_retention_policy {
      days = var.blob.deleted_days
    }
  }

  tags = var.tags
}

resource "azurerm_storage_container" "modules" {
  name                  = "modules"
  storage_account_id    = azurerm_storage_account.this.id
  container_access_type = "private"
}

resource "azurerm_private_endpoint" "this" {
  for_each = {
    cosmos = { id = azurerm_cosmosdb_account.this.id, subresource = "Sql" }
    blob   = { id = azurerm_storage_account.this.id, subresource = "blob" }
  }
  name                = "${var.name}-${each.key}"
  resource_group_name = var.resource_group_name
  location            = var.location
  subnet_id           = var.endpoints_subnet_id
  tags                = var.tags

  private_service_connection {
    name                           = each.key
    is_manual_connection           = false
    private_connection_resource_id = each.value.id
    subresource_names              = [each.value.subresource]
  }

  private_dns_zone_group {
    name                 = "default"
    private_dns_zone_ids = [var.zone_ids[each.key]]
  }
}

# The storage role's identity. Proxies and crawlers have none: their service accounts are
# known to nobody in Azure.
resource "azurerm_user_assigned_identity" "storage" {
  name                = "${var.name}-storage"
  resource_group_name = var.resource_group_name
  location            = var.location
  tags                = var.tags
}

resource "azurerm_federated_identity_credential" "storage" {
  name                      = "kubernetes"
  user_assigned_identity_id = azurerm_user_assigned_identity.storage.id
  issuer                    = var.service_account.issuer
  subject                   = "system:serviceaccount:${var.service_account.namespace}:${var.service_account.name}"
  audience                  = ["api://AzureADTokenExchange"]
}

resource "azurerm_cosmosdb_sql_role_assignment" "storage" {
  resource_group_name = var.resource_group_name
  account_name        = azurerm_cosmosdb_account.this.name
  role_definition_id  = "${azurerm_cosmosdb_account.this.id}/sqlRoleDefinitions/${local.data_contributor}"
  principal_id        = azurerm_user_assigned_identity.storage.principal_id
  scope               = "${azurerm_cosmosdb_account.this.id}/dbs/${azurerm_cosmosdb_sql_database.this.name}"
}

resource "azurerm_role_assignment" "storage" {
  scope                = azurerm_storage_container.modules.id
  role_definition_name = "Storage Blob Data Contributor"
  principal_id         = azurerm_user_assigned_identity.storage.principal_id
  principal_type       = "ServicePrincipal"
}

resource "azurerm_management_lock" "this" {
  for_each = var.lock ? {
    cosmos = azurerm_cosmosdb_account.this.id
    blob   = azurerm_storage_account.this.id
  } : {}
  name       = "keep"
  scope      = each.value
  lock_level = "CanNotDelete"
  notes      = "All modules are kept here."

  # What is locked can't be changed in some ways either: last.
  depends_on = [
    azurerm_cosmosdb_sql_container.this, azurerm_cosmosdb_sql_role_assignment.storage, azurerm_role_assignment.storage,
    azurerm_private_endpoint.this, azurerm_storage_container.modules,
  ]
}
