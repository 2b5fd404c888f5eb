from .attention import register
register()
