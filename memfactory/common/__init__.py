"""What every other layer may use: names, types, errors, settings. Imports nothing else of the package."""
