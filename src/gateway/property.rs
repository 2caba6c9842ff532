pub(crate) fn placeholder(){}
