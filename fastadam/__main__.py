"""python -m fastadam demo | compare | config"""

from fastadam.gallery.commands import main

if __name__ == "__main__":
    main()
