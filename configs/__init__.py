"""The configs that come with FairHuman, installed as `fairhuman.configs`; see `config.shipped`."""
