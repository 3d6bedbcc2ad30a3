"""What Weighbridge answers over HTTP."""
