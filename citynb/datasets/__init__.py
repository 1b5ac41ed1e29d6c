"""The shipped datasets: one module each, whose `load` makes the `CityTask`.

`citynb.load` is the door: it checks the files first. What a dataset is stands in the card
beside it, `data/<name>/card.md`.
"""
