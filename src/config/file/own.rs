//! The document with portolan's own settings.

use serde_json::{Map, Value};

use super::Reader;
use crate::config::own::{API_VERSION, KIND, RawOwn, Setting, fields_of, sections};

impl Reader<'_> {
    pub(super) fn own(&mut self, mut tree: Map<String, Value>) -> RawOwn {
        let root = &mut tree;
        let mut raw = RawOwn::default();
        self.expect(root, "apiVersion", API_VERSION);
        self.expect(root, "kind", KIND);
        for name in sections() {
            let mut section = self.section(root, name);
            fields_of(Some(name)).for_each(|(field, setting)| self.own_field(&mut section, field, setting, &mut raw));
            self.rest(&section, &format!("{name}."), &[]);
        }
        fields_of(None).for_each(|(field, setting)| self.own_field(root, field, setting, &mut raw));
        self.rest(root, "", &[]);
        raw
    }

    fn own_field(&mut self, tree: &mut Map<String, Value>, field: &str, setting: &Setting, raw: &mut RawOwn) {
        let Some(value) = tree.remove(field) else { return };
        match setting.form.text(&value) {
            Some(text) => raw.insert(setting.key, text),
            None => self.wrong_type(format!("{KIND}.{}", setting.key), &value, setting.form.name()),
        }
    }
}
