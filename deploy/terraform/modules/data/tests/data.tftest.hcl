mock_provider "azurerm" {
  source = "../../mocks"
}

variables {
  name                = "site"
  resource_group_name = "site"
  location            = "westeurope"
  tags                = {}
  cosmos              = { mode = "serverless" }
  blob                = { name = "site", replication = "ZRS" }
  endpoints_subnet_id = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/Microsoft.Network/virtualNetworks/site/subnets/endpoints"
  zone_ids = {
    cosmos = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/Microsoft.Network/privateDnsZones/privatelink.documents.azure.com"
    blob   = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/site/providers/Microsoft.Network/privateDnsZones/privatelink.blob.core.windows.net"
  }
  service_account = { issuer = "https://issuer.example.com/", namespace = "athensctl", name = "athensctl-storage" }
  lock            = true
}

run "serverless" {
  assert {
    condition     = azurerm_cosmosdb_account.this.public_network_access_enabled == false && azurerm_cosmosdb_account.this.local_authentication_enabled == false
    error_message = "The Cosmos DB account has an address on the internet, or keys."
  }
  assert {
    condition     = azurerm_cosmosdb_account.this.minimal_tls_version == "Tls12"
    error_message = "Cosmos DB takes TLS older than 1.2."
  }
  assert {
    condition     = [for c in azurerm_cosmosdb_account.this.capabilities : c.name] == ["EnableServerless"]
    error_message = "Serverless is a capability of the account."
  }
  assert {
    condition     = length(azurerm_cosmosdb_account.this.geo_location) == 1 && azurerm_cosmosdb_account.this.automatic_failover_enabled == false
    error_message = "A serverless account has one region."
  }
  assert {
    condition     = length(azurerm_cosmosdb_sql_database.this.autoscale_settings) == 0
    error_message = "A serverless database takes no throughput."
  }
  assert {
    condition     = azurerm_cosmosdb_account.this.consistency_policy[0].consistency_level == "Strong" && azurerm_cosmosdb_account.this.multiple_write_locations_enabled == false
    error_message = "Conditional writes need one write region, and reads after them strong consistency."
  }
  assert {
    condition     = azurerm_cosmosdb_account.this.backup[0].type == "Continuous" && azurerm_cosmosdb_account.this.backup[0].tier == "Continuous7Days"
    error_message = "Backups are not continuous."
  }
  assert {
    condition = alltrue([
      azurerm_storage_account.this.public_network_access_enabled == false,
      azurerm_storage_account.this.shared_access_key_enabled == false,
      azurerm_storage_account.this.local_user_enabled == false,
      azurerm_storage_account.this.allow_nested_items_to_be_public == false,
      azurerm_storage_account.this.https_traffic_only_enabled == true,
      azurerm_storage_account.this.min_tls_version == "TLS1_2",
      azurerm_storage_container.modules.container_access_type == "private",
    ])
    error_message = "Blob Storage has an address on the internet, keys, public containers or TLS older than 1.2."
  }
  assert {
    condition = alltrue([
      azurerm_storage_account.this.blob_properties[0].delete_retention_policy[0].days == 14,
      azurerm_storage_account.this.blob_properties[0].container_delete_retention_policy[0].days == 14,
    ])
    error_message = "What is deleted can't be had back."
  }
  assert {
    condition = {
      for k, e in azurerm_private_endpoint.this : k => [e.private_service_connection[0].subresource_names[0], e.private_dns_zone_group[0].private_dns_zone_ids[0]]
    } == { cosmos = ["Sql", var.zone_ids.cosmos], blob = ["blob", var.zone_ids.blob] }
    error_message = "Each account needs a private endpoint, with a name in the zone of its service."
  }
  assert {
    condition     = keys(azurerm_management_lock.this) == ["blob", "cosmos"] && alltrue([for l in azurerm_management_lock.this : l.lock_level == "CanNotDelete"])
    error_message = "The accounts are not locked against deletion."
  }
}

run "rights" {
  assert {
    condition     = azurerm_federated_identity_credential.storage.subject == "system:serviceaccount:athensctl:athensctl-storage" && azurerm_federated_identity_credential.storage.issuer == "https://issuer.example.com/"
    error_message = "The identity is for the storage role's service account alone."
  }
  assert {
    condition     = endswith(azurerm_cosmosdb_sql_role_assignment.storage.scope, "/databaseAccounts/site/dbs/athensctl") && endswith(azurerm_cosmosdb_sql_role_assignment.storage.role_definition_id, "/databaseAccounts/site/sqlRoleDefinitions/00000000-0000-0000-0000-000000000002")
    error_message = "The right on Cosmos DB is not Data Contributor of the one database."
  }
  assert {
    condition     = endswith(azurerm_role_assignment.storage.scope, "/storageAccounts/site/blobServices/default/containers/modules") && azurerm_role_assignment.storage.role_definition_name == "Storage Blob Data Contributor"
    error_message = "The right on Blob Storage is not Data Contributor of the one container."
  }
}

run "autoscale" {
  variables {
    cosmos = { mode = "autoscale", max_throughput = 4000, second_region = "northeurope", zone_redundant = true, backup_days = 30 }
    lock   = false
  }
  assert {
    condition     = [for g in azurerm_cosmosdb_account.this.geo_location : [g.location, g.failover_priority, g.zone_redundant]] == [["westeurope", 0, true], ["northeurope", 1, true]]
    error_message = "The account has other regions than the two."
  }
  assert {
    condition     = azurerm_cosmosdb_account.this.automatic_failover_enabled && azurerm_cosmosdb_account.this.multiple_write_locations_enabled == false && length(azurerm_cosmosdb_account.this.capabilities) == 0
    error_message = "Two regions: one to write to, the other takes over by itself."
  }
  assert {
    condition     = azurerm_cosmosdb_sql_database.this.autoscale_settings[0].max_throughput == 4000
    error_message = "The database has another throughput."
  }
  assert {
    condition     = azurerm_cosmosdb_account.this.consistency_policy[0].consistency_level == "Strong" && azurerm_cosmosdb_account.this.backup[0].tier == "Continuous30Days"
    error_message = "Consistency or backups are not what was asked for."
  }
  assert {
    condition     = output.cosmos == { endpoint = "https://site.documents.azure.com:443", database = "athensctl", regions = ["westeurope", "northeurope"], backgroundUnits = 2000 }
    error_message = "The chart is not told the regions, the nearest first."
  }
  assert {
    condition     = length(azurerm_management_lock.this) == 0
    error_message = "There is a lock that was not asked for."
  }
}

run "bounded_staleness" {
  variables {
    cosmos = { mode = "autoscale", max_throughput = 1000, second_region = "northeurope", consistency = "BoundedStaleness", account_name = "site-restored" }
  }
  assert {
    condition     = azurerm_cosmosdb_account.this.name == "site-restored" && azurerm_cosmosdb_sql_database.this.account_name == "site-restored"
    error_message = "An account that was restored has another name than the site."
  }
  assert {
    condition     = azurerm_cosmosdb_account.this.consistency_policy[0].max_interval_in_seconds == 300 && azurerm_cosmosdb_account.this.consistency_policy[0].max_staleness_prefix == 100000
    error_message = "Azure refuses less with two regions."
  }
}

run "serverless_two_regions" {
  command         = plan
  expect_failures = [var.cosmos]
  variables {
    cosmos = { mode = "serverless", second_region = "northeurope" }
  }
}

run "autoscale_one_region" {
  command         = plan
  expect_failures = [var.cosmos]
  variables {
    cosmos = { mode = "autoscale", max_throughput = 4000 }
  }
}
