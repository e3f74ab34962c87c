"""Operating system functions: files, processes, memory, certificates, outgoing HTTP."""
