terraform {
  required_version = ">= 1.11"
  required_providers {
    azurerm = {
      source  = "hashicorp/azurerm"
      version = "~> 5.2"
    }
  }

  # The rest is given to terraform init -backend-config=backend.hcl: docs/aks.md.
  backend "azurerm" {
    container_name   = "tfstate"
    key              = "staging.tfstate"
    use_azuread_auth = true
  }
}
