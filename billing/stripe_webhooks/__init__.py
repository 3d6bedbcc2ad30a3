"""What a provider tells by itself: invoices, rejected usage, deleted customers, paid top-ups."""
