"""What a run writes down while it trains: metrics, tables, plots, pictures, and the services they are sent to."""
