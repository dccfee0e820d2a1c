"""The demo data set: smart-home requests and the JSON commands that they mean."""
