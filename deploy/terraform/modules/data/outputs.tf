output "cosmos" {
  description = "The Cosmos DB account and database, as the chart's store.cosmos has them."
  value = {
    endpoint = trimsuffix(azurerm_cosmosdb_account.this.endpoint, "/")
    database = azurerm_cosmosdb_sql_database.this.name
    regions  = concat([var.location], var.cosmos.second_region == null ? [] : [var.cosmos.second_region])

    # Half for what is fetched ahead of demand, half for readers. A serverless container has 5,000
    # units a second, and more only beyond 250 GB.
    # https://learn.microsoft.com/azure/cosmos-db/serverless-performance
    backgroundUnits = coalesce(var.cosmos.max_throughput, 5000) / 2
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
