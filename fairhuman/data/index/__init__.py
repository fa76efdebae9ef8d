"""What is known of a data set's files, kept on disk, so that a run's start need not open them.

In the index's folder:

- `listing-KEY.arrow`: the data set's rows, read and checked; KEY is a digest of them and of how
  they are read;
- `images.arrow`, `masks.arrow`: a row per file that was opened as one and found usable: its size
  in bytes and time of change then, its width and height. A file that has changed since is opened
  again;
- `images-*.arrow`, `masks-*.arrow`: rows that are not in there yet, of a check that was stopped;
- `digests.arrow`: digests of the image files, where `data.cache` asks for them;
- `tokens-KEY.npy`: how many tokens each caption has;
- `shards/`: where in the shards the pictures are; see `stores.scan`.

The tables are memory-mapped: the processes of a machine share one copy in memory.
"""
