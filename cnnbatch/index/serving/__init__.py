"""An index that is asked over HTTP: `cnnbatch serve`.

```
client ──► server (uvicorn): gate ──► app (FastAPI) ──► replicas (Ray Serve): service
           token, size, rate          JSON, page        photos embedded, vectors searched, in batches
```

The HTTP server is one process of its own in front of Ray Serve, not Ray Serve's proxy: that one reads on,
however large a body is, before an application sees it. The same process knows all clients, so that their
rates are counted in one place, and no token ever reaches Ray. The price: one process answers all connections.
"""
