pub struct IptablesBackend;
