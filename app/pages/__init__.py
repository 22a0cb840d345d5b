"""What a browser sees: pages below /ui, rendered on the server, for readers who have neither curl nor SQL.

A request comes in through `Browsers`, which turns a session cookie into a token for access control and problems into pages. A handler
asks the same functions as the API's route for the same question, and hands what it found to a template. Each page names that route as
its JSON twin. Nothing here is needed by a client that is no browser, and no page needs JavaScript or another host.
"""
