output "id" {
  description = "Resource id of the profile."
  value       = azurerm_cdn_frontdoor_profile.this.id
}

output "require_header" {
  description = "What the proxy asks of each request, as the setting require-header has it: the id of this profile."
  value       = "X-Azure-FDID=${azurerm_cdn_frontdoor_profile.this.resource_guid}"
}

output "url" {
  description = "What goes into GOPROXY."
  value       = "https://${coalesce(var.host_name, azurerm_cdn_frontdoor_endpoint.this.host_name)}"
}

output "dns_records" {
  description = "Records to make where host_name's zone is: the one that proves that it is yours, and the one that leads here."
  value = var.host_name == null ? {} : {
    "_dnsauth.${var.host_name}" = { type = "TXT", value = azurerm_cdn_frontdoor_custom_domain.this[0].validation_token }
    (var.host_name)             = { type = "CNAME", value = azurerm_cdn_frontdoor_endpoint.this.host_name }
  }
}
