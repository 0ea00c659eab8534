"""The forms that rows come in, one small module per family; `registry` finds them and tells them apart."""
