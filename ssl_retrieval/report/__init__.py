"""What people look at: tables, charts, galleries, one HTML page."""
