//! Runs PTX text on the CPU and reports every misuse of memory and synchronisation
