variable "name" {
  description = "Name of the site, and of the Cosmos DB account: it is unique in all of Azure."
  type        = string
}

variable "resource_group_name" {
  description = "Resource group of everything here."
  type        = string
}

variable "location" {
  description = "Azure region of the Blob account, the endpoints and the identity; the first of the Cosmos DB account's."
  type        = string
}

variable "tags" {
  description = "Tags of everything here."
  type        = map(string)
}

variable "cosmos" {
  description = <<-EOT
    The Cosmos DB account. mode: serverless (one region, paid by the request) or autoscale (two regions,
    max_throughput request units a second shared by the containers). second_region: with autoscale, the region that
    is read from, and written to after a failover. consistency: Strong, or BoundedStaleness with two regions.
    zone_redundant: replicas in several zones of each region. backup_days: 7 or 30, how far back a restore may go.
    account_name: name of the account where it is not the site's: after a restore.
  EOT
  type = object({
    mode           = string
    max_throughput = optional(number)
    second_region  = optional(string)
    consistency    = optional(string, "Strong")
    zone_redundant = optional(bool, false)
    backup_days    = optional(number, 7)
    account_name   = optional(string)
  })

  validation {
    condition     = contains(["serverless", "autoscale"], var.cosmos.mode)
    error_message = "cosmos.mode is \"${var.cosmos.mode}\": serverless (one region) or autoscale (two regions)."
  }
  validation {
    condition     = var.cosmos.mode != "serverless" || var.cosmos.second_region == null
    error_message = "cosmos.mode is serverless, but second_region is set: Azure gives a serverless account one region. Take autoscale for two."
  }
  validation {
    condition     = var.cosmos.mode != "serverless" || var.cosmos.max_throughput == null
    error_message = "cosmos.mode is serverless, but max_throughput is set: a serverless account has no throughput, and takes none."
  }
  validation {
    condition     = var.cosmos.mode != "autoscale" || var.cosmos.second_region != null
    error_message = "cosmos.mode is autoscale: second_region is needed. For one region take serverless."
  }
  validation {
    condition     = var.cosmos.second_region == null || lower(replace(coalesce(var.cosmos.second_region, " "), " ", "")) != lower(replace(var.location, " ", ""))
    error_message = "cosmos.second_region is the first one too, \"${var.location}\"."
  }
  validation {
    condition     = var.cosmos.mode != "autoscale" || try(var.cosmos.max_throughput >= 1000 && var.cosmos.max_throughput % 1000 == 0, false)
    error_message = "cosmos.mode is autoscale: max_throughput is needed, 1000 request units a second or more, in thousands."
  }
  validation {
    condition     = contains(["Strong", "BoundedStaleness"], var.cosmos.consistency)
    error_message = "cosmos.consistency is \"${var.cosmos.consistency}\": replicas of the storage role have to read what others have written, which needs Strong or BoundedStaleness."
  }
  validation {
    condition     = var.cosmos.consistency != "BoundedStaleness" || var.cosmos.second_region != null
    error_message = "cosmos.consistency is BoundedStaleness with one region: it costs what Strong costs and promises less. Take Strong."
  }
  validation {
    condition     = contains([7, 30], var.cosmos.backup_days)
    error_message = "cosmos.backup_days is ${var.cosmos.backup_days}: Azure keeps continuous backups for 7 or 30 days."
  }
}

variable "blob" {
  description = "The Blob Storage account. name: unique in all of Azure, small letters and digits; replication: LRS (one data centre), ZRS (three zones), GRS or GZRS (and another region); deleted_days: how long what was deleted can be had back."
  type = object({
    name         = string
    replication  = string
    deleted_days = optional(number, 14)
  })

  validation {
    condition     = can(regex("^[a-z0-9]{3,24}$", var.blob.name))
    error_message = "blob.name is \"${var.blob.name}\": 3 to 24 small letters and digits."
  }
  validation {
    condition     = contains(["LRS", "ZRS", "GRS", "GZRS"], var.blob.replication)
    error_message = "blob.replication is \"${var.blob.replication}\": LRS, ZRS, GRS or GZRS."
  }
}

variable "endpoints_subnet_id" {
  description = "Subnet of the private endpoints."
  type        = string
}

variable "zone_ids" {
  description = "Private DNS zones: cosmos, blob."
  type        = object({ cosmos = string, blob = string })
}

variable "service_account" {
  description = "The one Kubernetes service account that may be the storage identity: the cluster's issuer, its namespace and name."
  type = object({
    issuer    = string
    namespace = string
    name      = string
  })
}

variable "lock" {
  description = "Whether the two accounts are locked against deletion."
  type        = bool
}
