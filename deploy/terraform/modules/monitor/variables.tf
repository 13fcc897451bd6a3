variable "name" {
  description = "Name of the site; resources are named after it."
  type        = string
}

variable "resource_group_name" {
  description = "Resource group of everything here."
  type        = string
}

variable "location" {
  description = "Azure region."
  type        = string
}

variable "tags" {
  description = "Tags of everything here."
  type        = map(string)
}

variable "logs" {
  description = "Logs and traces: how many days they are kept, and how many GB a day are taken at most (-1: no bound)."
  type        = object({ days = number, daily_gb = number })

  validation {
    condition     = var.logs.days >= 30 && var.logs.days <= 730
    error_message = "logs.days is ${var.logs.days}: 30 to 730."
  }
}

variable "alert_emails" {
  description = "Who is written to when an alert fires: a name of your choice, and an address."
  type        = map(string)
}

variable "namespace" {
  description = "Namespace of the release, whose metrics the alerts look at."
  type        = string
}

variable "cluster" {
  description = "The cluster: its id and name."
  type        = object({ id = string, name = string })
}

variable "cosmos_account_id" {
  description = "The Cosmos DB account, whose changes are logged."
  type        = string
}

variable "frontdoor_profile_id" {
  description = "The Front Door profile, whose firewall's findings are logged."
  type        = string
}
