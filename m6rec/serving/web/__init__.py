"""The server as HTTP: routes, who may ask, what is told and measured, and the page."""
