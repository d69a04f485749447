"""Fetch, verify and prepare the data sets of the book: `python -m data_scripts`.

`manifest.json` pins every download by version and SHA-256, and lists the data sets. Each is made by
one script, a module with

- `prepare(folder, inputs, size)`: fill an empty folder from `inputs`, the verified paths of the
  set's downloads by name; `size` is `""` where a set has one size only;
- `download(missing)`, if its downloads do not come from npm: bring them to `sources.place`.

A new set is one script and one entry in the manifest. An entry's `version` is raised whenever the
script draws something else, `needs` names sets that come first, and `default: false` keeps it out
of a plain `fetch`.
"""
