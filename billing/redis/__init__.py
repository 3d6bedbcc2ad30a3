"""Redis or Valkey: keys, scripts and clients. No rule of billing lives in Python here."""
