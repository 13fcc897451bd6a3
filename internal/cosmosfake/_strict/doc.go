// Package cosmosfake is a strict in-memory fake of Azure Cosmos DB (NoSQL API) as
// its REST protocol shows it, for tests. It does what the service does, or refuses.
//
// Sources, Microsoft's pages by name:
//   - "Azure Cosmos DB: REST API Reference": "Access control on Azure Cosmos DB
//     resources", "Common Azure Cosmos DB REST request headers", "… response
//     headers", "HTTP status codes for Azure Cosmos DB", "Create a Document",
//     "Patch a Document", "Querying Azure Cosmos DB resources using the REST API"
//   - "Azure Cosmos DB service quotas and default limits"
//   - "Transactional batch operations in Azure Cosmos DB"
//   - "Partial document update in Azure Cosmos DB", and its FAQ
//   - "Time to Live (TTL) in Azure Cosmos DB"
//   - "Indexing policies in Azure Cosmos DB"
//   - "Request Units in Azure Cosmos DB", "Equality and comparison operators",
//     "ORDER BY (NoSQL query)"
//   - github.com/Azure/azure-cosmos-dotnet-v3#1698: an upsert with If-Match of an
//     item that is not there creates it
//
// Stricter than the service, on purpose, to hold a backend to what is promised:
//   - a query filters and orders by indexed paths only (the service scans)
//   - results without ORDER BY come in an order that means nothing
//   - the first page of a query over all partitions is empty, with a continuation
//   - TOP, ORDER BY and aggregates over all partitions are refused, also where the
//     WHERE clause names one partition; != null, on which the page and the service
//     disagree, is refused, and so is If-None-Match on writes
//
// Laxer, since it is a fake: the partition key counts as indexed always (the
// service wants it in the indexing policy); one partition key path and no
// hierarchy; session tokens and consistency levels are accepted and not used; no
// change feed, stored procedures, unique keys, or resource ids in addresses. The
// request charge is a model: Microsoft's table for reads, about five times that
// for writes.
package cosmosfake
