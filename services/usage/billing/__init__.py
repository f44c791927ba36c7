"""Plans, credits and invoices. Pure but for `plans` and `invoice_log`, which read the log, and `app`."""
