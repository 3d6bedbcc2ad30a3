"""The intelligence platform's own work: capturing pages, premium searches, forensic searches."""
