"""Web page and JSON API of the product search.

A search request passes through these modules:

1. `access.py`: `with_access` checks the Host header and the API key, counts the client's requests, and adds security
   headers to the response.
2. `pages.py` (`GET /`) or `api.py` (`GET /api/search`): the route.
3. `query.py`: FastAPI validates the parameters as a `SearchQuery`, which also writes links.
4. `uploads.py` (`POST` only): reads the form with picture files, within limits of size, time and memory.
5. `state.py`: `CatalogueState` holds the `CatalogueView` to search in: one version of the catalogue and its model.
6. `service.py`: `SearchService.search` decodes, embeds and ranks in a worker thread and returns a `SearchResult`.
7. `templates/` with `views.py` (HTML) or `api.py` (JSON): the response.

`app.py` puts these together; an `HTTPError` (`errors.py`) from any step becomes an error page or JSON. `connections.py`
limits the connections of the server, `monitoring.py` counts requests and logs them. `developer.py` and `openapi.py`
prepare the contents of the pages `/developer` and `/api`.
"""
