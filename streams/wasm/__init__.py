"""Runs UDFs and the record decoder as WebAssembly, under limits. The only room that imports wasmtime."""
