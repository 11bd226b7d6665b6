"""The log of a run while it trains: metrics, tables, plots, pictures, and the services that they are sent to."""
