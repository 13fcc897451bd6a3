output "cosmos" {
  description = "The Cosmos DB account and database, as the chart's store.cosmos has them."
  value = {
    endpoint = trimsuffix(azurerm_cosmosdb_account.this.endpoint, "/")
    database = azurerm_cosmosdb_sql_database.this.name
    regions  = concat([var.location], var.cosmos.second_region == null ? [] : [var.cosmos.second_region])
  }
}

output "blob" {
  description = "The Blob Storage account and container, as the chart's store.blob has them."
  value = {
    endpoint  = trimsuffix(azurerm_storage_account.this.primary_blob_endpoint, "/")
    container = azurerm_storage_container.modules.name
  }
}

output "storage_client_id" {
  description = "Client id of the storage role's identity."
  value       = azurerm_user_assigned_identity.storage.client_id
}

output "cosmos_account_id" {
  description = "Resource id of the Cosmos DB account."
  value       = azurerm_cosmosdb_account.this.id
}
