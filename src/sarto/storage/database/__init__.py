"""The SQL database: `database` opens it, `tables` describes it, `migrations` upgrades it."""
