"""The dashboard: reads run directories and serves them as one live page."""
