"""python -m fastadam demo | compare | config | inspect"""

from fastadam._commands import main

if __name__ == "__main__":
    main()
