"""Where the rows of a data set and the bytes of its pictures come from.

`store.Store` is all that the other modules know of it. A `folder.FolderStore` has a file for each
picture. A `packed.PackedStore` has shards: what lists a shard's samples and says where in it their
pictures lie is `tar`, `parquet` or `arrow`; from then on a picture is a stretch of bytes of a file.
`choose.open_store` tells what a folder holds.
"""
