"""What methods and the engine cost, measured and forecast."""
